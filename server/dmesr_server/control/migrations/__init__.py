"""Migrations of the control database. A step that was released is never edited: a new one is added."""

"""Runs migrations on the connection that :meth:`dmesr_server.control.database.Database.migrate` hands in."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=False)
# The caller holds the transaction: either all steps are taken or none.
context.run_migrations()

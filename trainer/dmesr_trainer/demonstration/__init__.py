"""The whole main job, run once for somebody who wants to see it: a real server, real training, real answers."""

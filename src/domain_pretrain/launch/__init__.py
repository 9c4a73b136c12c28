"""Before and around a run: the preflight, the agent that restarts it, the checkpoint it resumes."""

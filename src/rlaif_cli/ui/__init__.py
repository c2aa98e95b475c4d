"""Output for people: messages, progress, the live screen."""

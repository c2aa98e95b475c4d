"""What people see: messages, progress, the live screen."""

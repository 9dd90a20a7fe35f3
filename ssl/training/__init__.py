"""What surrounds a training step: precision, guard, health, judging, stopping, logs."""

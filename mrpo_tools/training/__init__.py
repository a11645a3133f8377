"""What stands behind phase 2: preparation, the step-0 check, the trainer, the run's record."""

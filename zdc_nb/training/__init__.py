"""Training: the teacher by maximum likelihood, the student by distillation."""

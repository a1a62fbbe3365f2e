"""What is measured after a stage: the row of the matrix, forgetting, sharpness.

For the trainer and reports.
"""

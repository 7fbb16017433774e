"""The fault harness: real servers, monitors and jobs under faults, and what became of each job.

``python -m tests.faults`` (``bash run_tests.sh faults``) is the long run; the tests of this folder
are short ones.
"""

"""What runs the jobs: HTCondor, or this machine by itself, behind one contract (``base``)."""

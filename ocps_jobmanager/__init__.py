"""The OCPS Job Manager: waits for an observatory's data and has HTCondor process them.

Importing the package, or any module of it, does nothing; ``app.make_app`` wires the parts.
"""

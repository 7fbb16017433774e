"""The monitor's program, started by ``monitors.MonitorSupervisor`` for each job that waits.

``python -I -S monitor.py --id ID --type TYPE --api_url URL``; the contract is in ``monitor_body``.

It is short because Python compiles a script anew in each process that runs it, but keeps what it
imports: with ``monitor_body`` in here a monitor would need a third more memory, and a third more
time to start. There may be thousands.
"""

if __name__ == "__main__":
    import posix
    import sys

    # With -I and -S only the standard library can be found, and this package need not be.
    sys.path.append(__file__.rpartition("/")[0])
    from monitor_body import main  # type: ignore[import-not-found]

    # At once: a request that is under way in its thread is not waited for.
    posix._exit(main(sys.argv[1:]))

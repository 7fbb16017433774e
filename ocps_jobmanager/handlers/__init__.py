"""HTTP in, HTTP out: a handler parses, calls one `JobManager` method, and renders."""

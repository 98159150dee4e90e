"""Worker processes: batches through shared memory, and a stream that outlives them; pipeline.py is the door."""

"""What was measured or counted, as frozen records: units in the names, ``None`` where a figure cannot be had.

Tables, TensorBoard, ``metrics.jsonl`` and ``--json`` read these and nothing else.
"""

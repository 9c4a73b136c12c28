"""What the plugin knows of Megatron-LM, MindSpeed-LLM and Megatron-Bridge.

``install`` applies the seams (``megatron``; ``mindspeed`` hands them to its patch manager). When a
run starts, ``runtime`` (or ``bridge``, by callbacks) gathers ``RunFacts``, and ``session`` does the
rest for all of them: checks (``support``, ``versions``, ``command_line``), the ``streaming`` of its
data where it is mixed, what alarms have ``known``, then the step of this rank (``ranks``).
``probes`` ask the model. ``rehearsal`` ends a start after the checks. ``gpt`` is the built-in
entry, ``page`` makes docs/hosts.md. Only this room and ``backends`` name Megatron. Imported by the
entry points.
"""

"""What every kind of rule is made of: strategies, alarms and exporters alike.

A rule is a plain function that a run's config names. First ``registry`` finds it by that name, also
in another package; then ``options`` checks what the user wrote for it, against the run's domains;
while training, ``state`` takes what the rule keeps into a checkpoint and back, by domain name.

This room knows no kind: each defines its own rules and holds its own ``Registry``. It may be
imported by all rooms above (``records``, ``strategies``, ``watch``, ``flow``), and itself imports
only the ground floor (``errors``, ``section``, ``suggest``).
"""

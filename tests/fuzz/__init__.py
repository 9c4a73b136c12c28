"""Malformed input for every reader of the product, from fixed seeds.

``case`` says what an input is and judges what becomes of it; ``damage`` is common to all; a module
for each kind of input makes cases and knows what has to hold; ``run`` counts.
"""

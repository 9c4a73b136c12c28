"""Arithmetic with worked steps: text whose loss falls as a model learns to calculate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from random import Random

NAMES = ("Ada", "Ben", "Chidi", "Dana", "Emil", "Fatima", "Grete", "Hiro", "Ines", "Jonas")
THINGS = ("apples", "bolts", "books", "coins", "lamps", "pages", "seeds", "shirts", "tiles")


def maths_documents(random: Random) -> Iterator[str]:
    """Yield endless documents, each with a few problems of mixed kinds."""
    while True:
        problems = [random.choice(TEMPLATES)(random) for _ in range(random.randint(2, 5))]
        yield "\n\n".join(problems) + "\n"


def _addition(random: Random) -> str:
    digits = random.randint(2, 5)
    a, b = (random.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
    steps, carry = [], 0
    for place in range(digits):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        carried = f" + {carry} carried" if carry else ""
        carry = total // 10
        then = f", write {total % 10} and carry 1" if carry else f", write {total}"
        steps.append(f"  {x} + {y}{carried} = {total}{then}")
    if carry:
        steps.append("  the last carry gives a leading 1")
    return f"Add {a} and {b}, from the right:\n" + "\n".join(steps) + f"\n{a} + {b} = {a + b}"


def _subtraction(random: Random) -> str:
    a, b = sorted((random.randrange(20, 10000) for _ in range(2)), reverse=True)
    rounded = b // 10 * 10
    return (
        f"What is {a} - {b}?\nTake away {rounded} first: {a} - {rounded} = {a - rounded}.\n"
        f"Then take away {b - rounded}: {a - rounded} - {b - rounded} = {a - b}.\nAnswer: {a - b}"
    )


def _multiplication(random: Random) -> str:
    a, b = random.randrange(12, 1000), random.randrange(12, 100)
    tens, ones = b // 10 * 10, b % 10
    return (
        f"Multiply {a} by {b}.\n  {b} = {tens} + {ones}\n  {a} * {tens} = {a * tens}\n"
        f"  {a} * {ones} = {a * ones}\n  {a * tens} + {a * ones} = {a * b}\nSo {a} * {b} = {a * b}."
    )


def _division(random: Random) -> str:
    divisor, number = random.randrange(3, 30), random.randrange(100, 100000)
    steps, rest = [], 0
    for digit in str(number):
        current = rest * 10 + int(digit)
        quotient, rest = divmod(current, divisor)
        steps.append(f"  {current} : {divisor} = {quotient}, remainder {rest}")
    return (
        f"Long division of {number} by {divisor}:\n" + "\n".join(steps) + f"\n"
        f"{number} = {divisor} * {number // divisor} + {number % divisor}"
    )


def _equation(random: Random) -> str:
    a, b, x = random.randrange(2, 20), random.randrange(1, 100), random.randrange(-30, 31)
    c = a * x + b
    return (
        f"Solve {a}x + {b} = {c}.\nSubtract {b} from both sides: {a}x = {c - b}.\n"
        f"Divide both sides by {a}: x = {x}.\nCheck: {a} * ({x}) + {b} = {c}."
    )


def _greatest_divisor(random: Random) -> str:
    factor = random.randrange(2, 40)
    a, b = sorted((factor * random.randrange(2, 60) for _ in range(2)), reverse=True)
    steps, x, y = [], a, b
    while y:
        steps.append(f"  {x} = {x // y} * {y} + {x % y}")
        x, y = y, x % y
    return f"Find gcd({a}, {b}) by Euclid's algorithm.\n" + "\n".join(steps) + f"\ngcd = {x}"


def _fractions(random: Random) -> str:
    b, d = random.randrange(2, 13), random.randrange(2, 13)
    a, c = random.randrange(1, b), random.randrange(1, d)
    common = math.lcm(b, d)
    x, y = a * (common // b), c * (common // d)
    shared = math.gcd(x + y, common)
    reduced = f"{(x + y) // shared}/{common // shared}"
    return (
        f"{a}/{b} + {c}/{d}: the common denominator is {common}.\n"
        f"{a}/{b} = {x}/{common} and {c}/{d} = {y}/{common}.\n"
        f"The sum is {x + y}/{common}" + (f" = {reduced}." if shared > 1 else ".")
    )


def _story(random: Random) -> str:
    giver, taker = random.sample(NAMES, 2)
    things, boxes, each = random.choice(THINGS), random.randrange(2, 30), random.randrange(3, 60)
    total, given = boxes * each, random.randrange(1, boxes * each)
    return (
        f"{giver} has {boxes} boxes with {each} {things} each and gives {given} to {taker}. "
        f"How many {things} does {giver} keep?\nIn the boxes: {boxes} * {each} = {total}.\n"
        f"After giving: {total} - {given} = {total - given}.\n{giver} keeps {total - given}."
    )


def _percentage(random: Random) -> str:
    percent, whole = random.randrange(1, 20) * 5, random.randrange(1, 200) * 20
    return (
        f"What is {percent}% of {whole}?\n1% of {whole} is {whole / 100:g}.\n"
        f"{percent} * {whole / 100:g} = {percent * whole // 100}.\nAnswer: {percent * whole // 100}"
    )


TEMPLATES: tuple[Callable[[Random], str], ...] = (
    _addition,
    _subtraction,
    _multiplication,
    _division,
    _equation,
    _greatest_divisor,
    _fractions,
    _story,
    _percentage,
)

"""The texts a tour uses on a model that brings none of its own: plain English that even tiny story models can read."""

from __future__ import annotations

from collections.abc import Sequence

# What people do when they feel good or bad: a direction is fitted on these ...
DEEDS = (
    ("smiled and laughed", "cried and shouted"),
    ("had a lot of fun", "had a lot of pain"),
    ("loved it very much", "hated it very much"),
    ("danced and sang", "screamed and ran away"),
    ("won the game and cheered", "lost the game and was grumpy"),
    ("got a beautiful gift", "got an ugly cut"),
    ("made a new friend", "broke a favorite toy"),
    ("said it was a great day", "said it was a terrible day"),
    ("felt warm and safe", "felt cold and lost"),
    ("was brave and strong", "was weak and sick"),
    ("wanted to stay and play", "wanted to go away and cry"),
    ("hugged mom and said thank you", "was mad and said go away"),
)
# ... and chosen and judged on words of feeling that occur in none of them.
MOODS_CHOOSE = (("kind", "mean"), ("joyful", "afraid"), ("good", "bad"), ("nice", "naughty"))
MOODS_TEST = (("happy", "sad"), ("glad", "angry"), ("proud", "scared"), ("excited", "upset"), ("cheerful", "lonely"),
              ("calm", "worried"))  # fmt: skip
# Every text ends where the model is about to say how somebody is, so that its last activation has to know.
FRAMES = (
    "{name} went to the park. {name} {end}. {name} was",
    "{name} saw a big dog and {end}. {name} was",
    "{name} looked at the box. {name} {end}. {name} was",
    "{name} came home. {name} {end}. {name} was",
)
NAMES = ("Lily", "Tom", "Anna", "Ben")


def feelings() -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[tuple[str, str]]]:
    """Pairs (positive, negative) of texts to fit, to choose and to report on."""
    feel = "was very {}"
    return (
        _told(DEEDS),
        _told([(feel.format(a), feel.format(b)) for a, b in MOODS_CHOOSE]),
        _told([(feel.format(a), feel.format(b)) for a, b in MOODS_TEST]),
    )


def _told(ends: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [
        (frame.format(name=name, end=good), frame.format(name=name, end=bad))
        for i, (good, bad) in enumerate(ends)
        for k, frame in enumerate(FRAMES)
        for name in [NAMES[(i + k) % len(NAMES)]]
    ]


PROMPTS = (
    "Lily woke up in the morning. She felt",
    "One day, Tom went to the park with his mom. He was",
    "Anna opened the big box and looked inside. She was",
)

# Clean and corrupt prompts for patching: title, frame, (clean word, corrupt word), fillers, answer, wrong answer.
# Fillers vary what does not matter, so that a map is a mean over several prompts.
LITTLE = ("little", "big", "good", "nice", "young", "small", "happy", "new")
QUESTIONS = (
    ("Which pronoun follows? A girl is 'she', a boy is 'he'.", "There was a {filler} {word}. One day,",
     ("girl", "boy"), LITTLE, " she", " he"),
    ("Which pronoun follows? A mother is 'she', a father is 'he'.", "The {word} was very {filler}. One day,",
     ("mother", "father"), ("happy", "sad", "tired", "kind"), " she", " he"),
    ("To whom is the drink given? To the one who does not give it.",
     "When Mary and John went to the {filler}, {word} gave a drink to", ("John", "Mary"),
     ("store", "park", "school", "beach"), " Mary", " John"),
    ("Which city is it?", "The capital of {word} is", ("France", "Italy"), ("",), " Paris", " Rome"),
)  # fmt: skip

# Unrelated text on which the cost of steering and the activity are measured when no file is given.
PROSE = """\
The river begins as a thin line of water between two stones. In spring it is loud and cold, and in summer it is so low
that children can walk across it without getting wet above the knee. Near the mill the water turns a wheel, and the
wheel turns a stone that grinds grain into flour. The miller gets up before the sun and opens the gate a little, so that
the wheel starts slowly. A cat sleeps on the sacks by the wall.

Behind the mill there is a road to the town. Every Monday a man with a cart takes twenty sacks to the baker, who pays
for them on Friday. The road is long and has many stones, so the cart has to go slowly. On the way there is a bridge
made of wood. Once, after a week of rain, the bridge was gone, and the man had to wait three days until it was built
again.

The town has a square with a tree in the middle. Around the square there are shops: one sells paper and pens, one sells
shoes, one sells bread. At noon the clock on the tower rings twelve times and the shops close for an hour. People sit
under the tree and eat. A woman reads the letters that came in the morning, and two men talk about the price of wood.

In the school behind the square, the teacher draws a map on the wall. This blue line is the river, she says, and this
mark is our town. The water goes on to the sea, which is far away. How long does it take? asks a boy in the first row.
If you put a leaf on the water here, the teacher says, it will reach the sea in about nine days. The boy counts on his
fingers. Then it was a Tuesday when the leaf that is there now began its way.

At night the town is quiet. A lamp burns in the window of the doctor, because someone on the hill is ill. The horse is
ready by the door. When the bell rings, the doctor takes a bag and a coat and rides up the hill. There is snow on the
fields, and the road is white. From above one can see all the lights of the valley, and the dark line of the river
between them, and the smoke that comes from the roof of the mill.

There are many ways to measure a field. One can walk along its sides and count the steps. One can lay a rope with knots
along the edge. One can look through a glass from a hill and read the angles, and then draw the field on paper at a
smaller size. Each way has its errors. Steps get shorter when one is tired, ropes get longer when they are wet, and the
air over warm ground bends the light. A careful person measures twice, in two different ways, and writes down both.
"""

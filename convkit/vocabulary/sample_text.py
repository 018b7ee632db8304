"""A piece of English that language models are run on where the user gives none.

On random token ids a model is far from anything it has learned: probabilities are flat, and the
most likely token changes with the last bit. On text it behaves as it will in use.
"""

from __future__ import annotations

SAMPLE_TEXT = """\
The ferry to the outer island leaves at seven, an hour before the market opens. In winter it
carries few people: a teacher, two nurses, and a man who repairs pumps and always sits next to the
engine room, because it is warm there. The crossing takes 45 minutes when the sea is calm. Nobody
talks much until the lighthouse comes into view; then, as if a bell had rung, somebody asks what
the weather will do.

"It will hold until Friday," said the captain one morning in March 2019. She was wrong, though not
by a lot. On Thursday evening the wind turned north, and by midnight the harbour master counted
11 boats adrift. Most of them were found within 3 kilometres of the pier. One was never found.

What does a small place do after such a night? First it makes a list. The list had four columns:
name, damage, cost, and who could help. A roof cost about $1,200; a mast, twice that. Next, people
who had never met began to share tools, and the school lent its kitchen. It is easy to say that
trouble brings out the best in us. It is more exact to say that it shows what was there already:
some were generous before the storm and stayed so, others found good reasons to be busy elsewhere.

By early summer the pier had new planks, which smelled of resin. The ferry kept its timetable. If
you take it today, look at the third bench on the left: a child scratched the date into it, quite
neatly, and underneath wrote the only comment that the event ever received in print. "Too loud."
"""

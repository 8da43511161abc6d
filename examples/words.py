"""Counts words, from a topic to a topic. No database, no broker: the log lies in ./data.

printf '%s\n' to be or not to be > words.txt
semel write words words.txt --on embedded:./data
semel run examples/words.py --on embedded:./data            # Ctrl-C ends it
semel read counts --on embedded:./data
"""

from semel import App, Topic

words, counts = Topic("words", key=str, value=str), Topic("counts", key=str, value=int)

app = App("words", lambda b: b.read(words).key_by(str.lower, key=str).count(name="seen").changes().write(counts))

"""Facts about English that more than one module needs: words that carry no content of their own."""

_STOPWORD_LINES = (
    "a an the of in on at to for from by with and or but as is are was were be been being has have",
    "had do does did it its he she they his her their him them this that these those there which who",
    "whom whose what when where why how not no so than then into about over after before also may",
    "can could will would up out if all any some one two i you we my your our me us said such only",
    "more most other",
)
STOPWORDS = frozenset(word for line in _STOPWORD_LINES for word in line.split())

"""What the reference is made of beside its pages.

names        the public names of gradfunc, by namespace, and what a name is called
groups       the names of `gf` itself, in the groups of README's table
signatures   what signatures mention: classes that functions make
docstrings   Google docstrings as Markdown
directives   pages from code: a namespace, a group, types, the command line, the notebooks
links        names in code spans become links; one that is no name of gradfunc is a warning
benchmarks   recorded results as tables
"""

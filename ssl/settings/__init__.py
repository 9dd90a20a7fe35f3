"""Settings of the scripts.

`shared` has the fields that several scripts have. `config` reads them from YAML and the command line; `hints` says what
an unknown name means. `ranges` checks the values. `auto` replaces the word auto by a number.
"""

"""Settings of the scripts.

1. `shared`: the fields that several scripts have.
2. `config` reads them from YAML and the command line, with `kinds`, their types; `manual` is --help.
3. `hints` says what an unknown name may mean; `ranges` checks numbers; `unread` refuses what nothing reads; `auto`
   replaces the word auto by a number.
4. `command` writes a command line, for the hints that the scripts print.
"""

"""The configuration, from bytes to a checked struct:

read     files, conf.d, environment, command line  -> tree (values with the lines they stand on; lines.py)
build    tree held against schema, later, syntax   -> Config, problems of shape
check    relations between keys                    -> findings
host     users and files of this machine           -> findings
load     all of it; the entry for everybody else   -> Loaded, or ConfigError with every problem

schema            every key there is; later: the keys that are known and refused until their feature exists;
                  former: names that keys have no more
secrets           files that `*_file` keys name      owners: whether our import names are ours alone
reference, write  the way out: documentation, JSON Schema, TOML
"""

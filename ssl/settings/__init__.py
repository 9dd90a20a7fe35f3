"""Settings: dataclass, YAML and command line; what they may be; what `auto` stands for."""

"""Files of weights and folders of runs: written whole, read without running their code, continued."""

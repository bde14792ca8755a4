"""`python run.py --config=configs/COMMAND.py [--config.a.b=value ...] [--workdir=DIR]`.

The config file names the command. Every field of it can be overridden on the command line, and
`python run.py --config=FILE --help` lists them.
"""

from mbti_jax import cli

if __name__ == "__main__":
    cli.run()

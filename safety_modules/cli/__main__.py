"""`python -m safety_modules.cli`: the command `safety-modules`."""

from safety_modules.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m mrpo_tools` is `mrpo`."""

from mrpo_tools.cli import main

main()

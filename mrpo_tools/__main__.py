from mrpo_tools.cli import main

main()

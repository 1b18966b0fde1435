"""The commands of the command line, a file each; `proactor.cli` puts them together."""

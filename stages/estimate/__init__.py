"""Before any weight is loaded: what both stages will take, in hours, money, disk and memory."""

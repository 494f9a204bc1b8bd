"""What a comparison says and leaves: tables, statistics, page, picture, set file."""

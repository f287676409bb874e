"""``rtloop doctor``: texts of the machine become facts (parse), facts become checks, checks become a page (report)."""

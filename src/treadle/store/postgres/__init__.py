"""PostgreSQL: the second home of a store. Loaded only when a store URL asks for it; needs psycopg."""

"""Operations: plain functions ``op(session, ...) -> values``, each beside the SQL it runs."""

import sqlparse

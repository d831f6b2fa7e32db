select count(*) from (select from audit.label where state = 'pending' limit %s) waiting

-- A table of 20000 rows, an index, joins, updates; the last lines are the check.
PRAGMA journal_mode = WAL;
CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, kind INTEGER, price REAL);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
INSERT INTO item SELECT i, 'item ' || (i * 7919 % 20011), i * 31 % 97, i * 0.25 FROM n;
COMMIT;
CREATE INDEX by_name ON item (name);
CREATE INDEX by_kind ON item (kind, price);
UPDATE item SET price = price * 1.5 WHERE kind < 20;
DELETE FROM item WHERE id % 13 = 0;
SELECT kind, count(*), sum(price), max(name) FROM item GROUP BY kind ORDER BY 3 DESC LIMIT 5;
SELECT count(*), sum(a.id * b.id % 1009) FROM item a JOIN item b ON b.kind = a.kind AND b.price BETWEEN a.price AND a.price + 8;
SELECT sum(length(replace(upper(name), 'ITEM', 'thing'))) FROM item WHERE name LIKE '%77%';
PRAGMA integrity_check;

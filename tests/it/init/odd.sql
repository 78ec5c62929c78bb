-- Names and types that are allowed, and that nobody expects.
CREATE SCHEMA "Weird Schema";
CREATE TABLE "Weird Schema"."accounts" (id int PRIMARY KEY, "na""me" text);
CREATE TABLE "Weird Schema"."line
break" ("i'd" int PRIMARY KEY, account_id int NOT NULL REFERENCES "Weird Schema".accounts, "__class" text, "a_b" int, "aB" int, "größe\" text, is_deleted bool);
CREATE TABLE "Weird Schema"."dot.ted" (id int PRIMARY KEY, account_id int NOT NULL REFERENCES "Weird Schema".accounts);
CREATE TABLE "Weird Schema"."😀" (id int PRIMARY KEY, account_id int NOT NULL REFERENCES "Weird Schema".accounts);
CREATE TABLE "Weird Schema"."select" (id int PRIMARY KEY, account_id int NOT NULL REFERENCES "Weird Schema".accounts, "order" int);
CREATE TABLE base (id int PRIMARY KEY, account_id int NOT NULL REFERENCES "Weird Schema".accounts);
CREATE TABLE derived (x int) INHERITS (base);
CREATE TABLE no_columns ();
CREATE DOMAIN acct AS int; CREATE DOMAIN acct2 AS acct;
CREATE TABLE dom (id acct PRIMARY KEY, account_id acct2 NOT NULL REFERENCES "Weird Schema".accounts);
CREATE TABLE dom_child (id int PRIMARY KEY, dom_id acct2 NOT NULL REFERENCES dom);
CREATE TABLE enumish (id date PRIMARY KEY, account_id int NOT NULL REFERENCES "Weird Schema".accounts);
CREATE TABLE big_ref (id int PRIMARY KEY, account_id bigint NOT NULL REFERENCES "Weird Schema".accounts);
CREATE TABLE sync_actions (id int PRIMARY KEY, account_id int NOT NULL REFERENCES "Weird Schema".accounts);
CREATE TABLE self (id int PRIMARY KEY, account_id int REFERENCES "Weird Schema".accounts, self_id int REFERENCES self);

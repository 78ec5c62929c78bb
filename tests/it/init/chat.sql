-- A chat: whole numbers, hardly a foreign key, users who are in many workspaces.
CREATE TABLE schema_migrations (version varchar PRIMARY KEY);
CREATE TABLE users (
    id bigserial PRIMARY KEY, email varchar(255) NOT NULL UNIQUE, encrypted_password varchar NOT NULL, name varchar);
CREATE TABLE workspaces (id bigserial PRIMARY KEY, name varchar NOT NULL, owner_id bigint NOT NULL);
CREATE TABLE workspace_members (
    id bigserial PRIMARY KEY, workspace_id bigint NOT NULL, user_id bigint NOT NULL, nickname varchar,
    UNIQUE (workspace_id, user_id));
CREATE TABLE channels (
    id bigserial PRIMARY KEY, workspace_id bigint NOT NULL, name varchar NOT NULL, is_private boolean NOT NULL DEFAULT false,
    created_by bigint, last_message_id bigint);
CREATE INDEX ON channels (workspace_id);
CREATE TABLE channel_members (
    channel_id bigint NOT NULL, user_id bigint NOT NULL, last_read_message_id bigint, PRIMARY KEY (channel_id, user_id));
CREATE TABLE messages (
    id bigserial PRIMARY KEY, channel_id bigint NOT NULL, user_id bigint NOT NULL, thread_id bigint, body text,
    deleted_at timestamp);
CREATE INDEX ON messages (channel_id, id);
CREATE TABLE message_reactions (
    message_id bigint NOT NULL, user_id bigint NOT NULL, emoji varchar NOT NULL, PRIMARY KEY (message_id, user_id, emoji));
CREATE TABLE uploads (
    id bigserial PRIMARY KEY, owner_type varchar NOT NULL, owner_id bigint NOT NULL, url text NOT NULL);
CREATE TABLE drafts (
    id bigserial PRIMARY KEY, workspace_id bigint NOT NULL, user_id bigint NOT NULL, channel_id bigint, body text);
CREATE TABLE custom_emojis (
    id bigserial PRIMARY KEY, workspace_id integer NOT NULL, shortcode varchar NOT NULL, image_url text);
CREATE TABLE device_tokens (id bigserial PRIMARY KEY, user_id bigint NOT NULL, token text NOT NULL);

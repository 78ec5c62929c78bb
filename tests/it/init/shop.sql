-- A shop platform as an ORM makes it: names in mixed case, text ids, junctions with composite keys.
CREATE EXTENSION IF NOT EXISTS citext;
CREATE TYPE "OrderStatus" AS ENUM ('PENDING', 'PAID', 'SHIPPED', 'CANCELLED');
CREATE TABLE "_prisma_migrations" (id varchar(36) PRIMARY KEY, checksum varchar(64) NOT NULL);
CREATE TABLE "Currency" (code char(3) PRIMARY KEY, name text NOT NULL);
CREATE TABLE "Store" (
    id text PRIMARY KEY, name text NOT NULL, slug text NOT NULL UNIQUE,
    "currencyCode" char(3) NOT NULL REFERENCES "Currency", "stripeSecretKey" text);
CREATE TABLE "User" (
    id text PRIMARY KEY, "storeId" text NOT NULL REFERENCES "Store", email citext NOT NULL, "passwordHash" text NOT NULL,
    role text NOT NULL DEFAULT 'clerk');
CREATE TABLE "Session" (
    id text PRIMARY KEY, "userId" text NOT NULL REFERENCES "User" ON DELETE CASCADE, "expiresAt" timestamptz NOT NULL);
CREATE TABLE "Category" (
    id text PRIMARY KEY, "storeId" text NOT NULL REFERENCES "Store", "parentId" text REFERENCES "Category", name text);
CREATE TABLE "Product" (
    id text PRIMARY KEY, "storeId" text NOT NULL REFERENCES "Store", "categoryId" text REFERENCES "Category",
    title text NOT NULL, price numeric(12, 2) NOT NULL, search tsvector, "deletedAt" timestamptz);
CREATE INDEX ON "Product" ("categoryId");
CREATE TABLE "ProductVariant" (
    id text PRIMARY KEY, "productId" text NOT NULL REFERENCES "Product" ON DELETE CASCADE, sku citext UNIQUE,
    options jsonb NOT NULL DEFAULT '{}');
CREATE INDEX ON "ProductVariant" ("productId");
CREATE TABLE "_CategoryToProduct" (
    "A" text NOT NULL REFERENCES "Category" ON DELETE CASCADE, "B" text NOT NULL REFERENCES "Product" ON DELETE CASCADE,
    PRIMARY KEY ("A", "B"));
CREATE TABLE "Customer" (
    id text PRIMARY KEY, "storeId" text NOT NULL REFERENCES "Store", email citext, "firstName" text, "lastName" text);
CREATE TABLE "Order" (
    id text PRIMARY KEY, number bigint NOT NULL, "storeId" text NOT NULL REFERENCES "Store",
    "customerId" text REFERENCES "Customer", status "OrderStatus" NOT NULL DEFAULT 'PENDING', "createdById" text REFERENCES "User",
    "placedAt" timestamptz NOT NULL DEFAULT now(), UNIQUE ("storeId", number));
CREATE INDEX ON "Order" ("customerId");
CREATE TABLE "OrderItem" (
    "orderId" text NOT NULL REFERENCES "Order" ON DELETE CASCADE, line integer NOT NULL,
    "variantId" text NOT NULL REFERENCES "ProductVariant", quantity integer NOT NULL, PRIMARY KEY ("orderId", line));
CREATE TABLE "Payment" (
    id text PRIMARY KEY, "orderId" text NOT NULL REFERENCES "Order", amount numeric NOT NULL, "cardNumber" text);
CREATE TABLE "OrderNote" (
    id bigserial PRIMARY KEY, "orderId" text NOT NULL REFERENCES "Order" ON DELETE CASCADE,
    "authorId" text REFERENCES "User", body text NOT NULL);
CREATE INDEX ON "OrderNote" ("orderId");
CREATE VIEW "DailySales" AS
    SELECT "storeId", date_trunc('day', "placedAt") AS day, count(*) AS orders FROM "Order" GROUP BY 1, 2;

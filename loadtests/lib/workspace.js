// Who asks: orgs, users and their tokens. Of the demonstration workspace by default, whose ids follow from their numbers
// (src/cli/seed/words.sql); of any other with ORG, and USER_IDS as a,b,c: one of all groups first, then others.

import { hmac, md5 } from 'k6/crypto';
import { b64encode } from 'k6/encoding';
import { scale, secret, text } from './settings.js';

const USERS_OF_SCALE = { small: 12, medium: 120, large: 400, million: 400 };
const given = text('USER_IDS', '').split(',').filter((id) => id !== '');

/** The org under load. */
export const org = text('ORG', demonstrationId('organization', 0, 1));

/** How many users it has. */
export const userCount = given.length || USERS_OF_SCALE[scale];
if (!userCount) {
    throw new Error(`SCALE is small, medium, large or million, not ${scale}`);
}

/** A user by number, from 1. The first is in every team, the others in one to five. */
export function user(number) {
    return given.length ? given[number - 1] : demonstrationId('user', 1, number);
}

/** A user in few teams: by default another one for each client and turn. */
export function someUser(turn = __VU * 7 + __ITER) {
    return userCount === 1 ? user(1) : user(2 + (turn % (userCount - 1)));
}

const tokens = {};

/** The headers that a user asks with. Tokens are made once a client and are good for a day. */
export function headersOf(user) {
    tokens[user] = tokens[user] || mint({ sub: user, org, exp: Math.floor(Date.now() / 1000) + 86_400 });
    return { Authorization: `Bearer ${tokens[user]}`, 'Accept-Encoding': 'zstd' };
}

/** A JWT signed with HS256 (RFC 7515). */
function mint(claims) {
    const part = (value) => b64encode(JSON.stringify(value), 'rawurl');
    const signed = `${part({ alg: 'HS256', typ: 'JWT' })}.${part(claims)}`;
    return `${signed}.${hmac('sha256', secret, signed, 'base64rawurl')}`;
}

function demonstrationId(kind, org, number) {
    const hex = md5(`${kind} ${org}/${number}`, 'hex');
    return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}

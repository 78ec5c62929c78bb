// What one snapshot consists of: its models at once, group sets and frames a page at a time.

import * as api from './api.js';
import { bytes, count, percent, ratio } from './format.js';

const PAGE = 100;
const dialog = document.getElementById('inspect');
const by = (id) => document.getElementById(id);
let shown = null;

function cell(content, kind = 'td', name = '') {
    const cell = document.createElement(kind);
    if (kind === 'th') cell.scope = 'row';
    if (name) cell.className = name;
    cell.append(content);
    return cell;
}

function line(...cells) {
    const row = document.createElement('tr');
    row.append(...cells);
    return row;
}

const number = (text) => cell(text, 'td', 'number');

function groupList({ groups, groupCount }) {
    const list = document.createElement('span');
    list.className = 'groups';
    for (const group of groups) {
        const item = document.createElement('bdi');
        item.textContent = group;
        list.append(item, ' ');
    }
    if (groupCount > groups.length) list.append(`and ${count(groupCount - groups.length)} more`);
    if (groupCount === 0) list.append('nobody');
    return list;
}

function fact(name, value) {
    const [dt, dd, div] = ['dt', 'dd', 'div'].map((tag) => document.createElement(tag));
    dt.textContent = name;
    dd.textContent = value;
    div.append(dt, dd);
    return div;
}

function content(found) {
    by('facts').replaceChildren(
        fact('Rows', count(found.rows)), fact('Size', bytes(found.bytes)), fact('Lines', bytes(found.rawBytes)), fact('Ratio', ratio(found.rawBytes, found.bytes)),
        fact('True at', `sync id ${found.syncId}`), fact('Generation', count(found.generation)), fact('Packs', count(found.packs)),
        fact('Snapshot', found.id), fact('Schema', found.schema), fact('Epoch', found.epoch),
    );
    by('models').replaceChildren(...found.models.map((model) => {
        // The figure beside it says the same.
        const share = document.createElement('progress');
        share.max = Math.max(1, found.bytes);
        share.value = model.bytes;
        share.setAttribute('aria-hidden', 'true');
        const name = document.createElement('bdi');
        name.textContent = model.name ?? `model ${model.index}`;
        const shareCell = cell(share, 'td', 'share');
        shareCell.append(` ${percent(model.bytes, found.bytes)}`);
        return line(cell(name, 'th'), number(count(model.rows)), number(count(model.frames)), number(bytes(model.rawBytes)), number(bytes(model.bytes)), shareCell);
    }));
    by('groups-count').textContent = count(found.groupSets);
    by('frames-count').textContent = count(found.frames);
}

/** A list that grows by a page whenever more is asked for. */
function paged(name, ask, row) {
    const [box, table, more] = [by(`${name}-box`), by(name), by(`more-${name}`)];
    const next = async () => {
        const of = shown;
        if (!of || more.disabled) return;
        more.disabled = true;
        try {
            const { items, total } = await ask(of, table.children.length);
            if (of !== shown) return;
            table.append(...items.map(row));
            more.hidden = table.children.length >= total || items.length === 0;
        } catch (error) {
            fault(error);
        } finally {
            more.disabled = false;
        }
    };
    more.addEventListener('click', next);
    box.addEventListener('toggle', () => {
        if (box.open && table.children.length === 0) next();
    });
    return () => {
        box.open = false;
        more.hidden = more.disabled = false;
        table.replaceChildren();
    };
}

const name = (index) => shown.models.find((model) => model.index === index)?.name ?? `model ${index}`;
const forget = [
    paged('groups', async ({ org, id }, from) => {
        const { groupSets: items, total } = await api.groups(org, id, from, PAGE);
        return { items, total };
    }, (set) => line(cell(groupList(set), 'th'), number(count(set.rows)), number(count(set.frames)), number(bytes(set.rawBytes)), number(bytes(set.bytes)))),
    paged('frames', async ({ org, id }, from) => {
        const { frames: items, total } = await api.frames(org, id, from, PAGE);
        return { items, total };
    }, (frame) => line(cell(name(frame.model), 'th'), cell(groupList(frame)), number(count(frame.rows)), number(bytes(frame.rawBytes)), number(bytes(frame.bytes)), number(count(frame.pack)), number(count(frame.offset)))),
];

function fault(error) {
    by('inspect-fault').textContent = error.message;
    by('inspect-fault').hidden = false;
    by('inspect-wait').hidden = true;
}

export async function inspect(org) {
    shown = null;
    forget.forEach((forget) => forget());
    by('inspect-title').querySelector('bdi').textContent = org;
    by('inspect-fault').hidden = by('inspect-content').hidden = true;
    by('inspect-wait').hidden = false;
    dialog.showModal();
    by('inspect-body').scrollTop = 0;
    try {
        shown = await api.snapshot(org);
        content(shown);
        by('inspect-wait').hidden = true;
        by('inspect-content').hidden = false;
    } catch (error) {
        fault(error);
    }
}

dialog.addEventListener('close', () => {
    shown = null;
});

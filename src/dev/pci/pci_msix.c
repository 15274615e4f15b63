/*
 * pci_msix.c - MSI-X: the table, the pending bits, the messages
 *
 * Invariant: a pending bit is set only while its vector may not be sent.
 * Spec: PCI Local Bus Specification 3.0, 6.8.2 and 6.8.3.
 */
#include "dev/pci/pci_msix.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "dev/pci/pci_host.h"
#include "dev/pci/pci_state.h"

#define CAP_SIZE 12
#define CAP_CONTROL 2
#define CAP_TABLE 4
#define CAP_PBA 8
#define CONTROL_FUNCTION_MASK BIT(14)
#define CONTROL_ENABLE BIT(15)

#define ENTRY_SIZE 16u
#define ENTRY_DATA 8
#define ENTRY_CONTROL 12
#define ENTRY_MASKED 1u

struct pci_msix {
    pthread_mutex_t lock;
    struct pci_device *dev;
    unsigned count;
    unsigned capability;
    unsigned pba_offset; /* in the BAR; the table is at 0 */
    bool is_enabled, is_function_masked, is_master;
    uint8_t *table;    /* as the guest sees it */
    uint64_t *pending; /* a bit for each vector */
};

static bool may_send(const struct pci_msix *m, unsigned index)
{
    return m->is_enabled && !m->is_function_masked && m->is_master &&
           !(m->table[index * ENTRY_SIZE + ENTRY_CONTROL] & ENTRY_MASKED);
}

static void send(const struct pci_msix *m, unsigned index)
{
    const uint8_t *entry = m->table + index * ENTRY_SIZE;

    pci_host_send_msi(m->dev->host, load_le64(entry), load_le32(entry + ENTRY_DATA));
}

/* Something may have been unmasked. */
static void send_pending(struct pci_msix *m)
{
    for (unsigned word = 0; word < (m->count + 63) / 64; word++) {
        uint64_t bits = m->pending[word];
        for (; bits != 0; bits &= bits - 1) {
            unsigned index = word * 64 + (unsigned)__builtin_ctzll(bits);
            if (!may_send(m, index))
                continue;
            m->pending[word] &= ~BIT(index % 64);
            send(m, index);
        }
    }
}

void pci_msix_notify(struct pci_msix *m, unsigned index)
{
    pthread_mutex_lock(&m->lock);
    if (index < m->count && m->is_enabled) {
        if (may_send(m, index))
            send(m, index);
        else
            m->pending[index / 64] |= BIT(index % 64);
    }
    pthread_mutex_unlock(&m->lock);
}

bool pci_msix_is_enabled(struct pci_msix *m)
{
    pthread_mutex_lock(&m->lock);
    bool is_enabled = m->is_enabled;
    pthread_mutex_unlock(&m->lock);
    return is_enabled;
}

void pci_msix_follow_config(struct pci_msix *m)
{
    const uint8_t *config = m->dev->config;
    uint16_t control = load_le16(config + m->capability + CAP_CONTROL);

    pthread_mutex_lock(&m->lock);
    m->is_enabled = (control & CONTROL_ENABLE) != 0;
    m->is_function_masked = (control & CONTROL_FUNCTION_MASK) != 0;
    m->is_master = pci_device_is_master(m->dev);
    send_pending(m);
    pthread_mutex_unlock(&m->lock);
}

/* ---- the BAR; under the lock, dwords and qwords ---- */

static uint64_t bar_read(void *ctx, uint64_t offset, unsigned size)
{
    const struct pci_msix *m = ctx;
    uint64_t value = 0;

    if (range_fits(offset, size, m->count * ENTRY_SIZE))
        memcpy(&value, m->table + offset, size);
    else if (offset >= m->pba_offset &&
             range_fits(offset - m->pba_offset, size, (m->count + 63) / 64 * 8))
        memcpy(&value, (const uint8_t *)m->pending + (offset - m->pba_offset), size);
    return value;
}

/* Pending bits are read-only; of a vector's control only the mask exists. */
static void bar_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct pci_msix *m = ctx;

    if (!range_fits(offset, size, m->count * ENTRY_SIZE))
        return;
    memcpy(m->table + offset, &value, size);
    uint8_t *entry = m->table + offset / ENTRY_SIZE * ENTRY_SIZE;
    entry[0] &= (uint8_t)~3u;
    store_le32(entry + ENTRY_CONTROL, load_le32(entry + ENTRY_CONTROL) & ENTRY_MASKED);
    send_pending(m);
}

static const struct space_ops bar_ops = {
    .read = bar_read, .write = bar_write, .min_size = 4, .max_size = 8};

/* ---- state ---- */

static unsigned word_count(const struct pci_msix *m)
{
    return (m->count + 63) / 64;
}

void pci_msix_get_state(struct pci_msix *m, struct pci_msix_state *out)
{
    memset(out, 0, sizeof(*out));
    out->count = (uint16_t)m->count;
    pthread_mutex_lock(&m->lock);
    for (unsigned i = 0; i < m->count; i++) {
        const uint8_t *entry = m->table + i * ENTRY_SIZE;
        out->vectors[i].address = load_le64(entry);
        out->vectors[i].data = load_le32(entry + ENTRY_DATA);
        out->vectors[i].is_masked = entry[ENTRY_CONTROL] & ENTRY_MASKED;
    }
    memcpy(out->pending, m->pending, word_count(m) * sizeof(out->pending[0]));
    pthread_mutex_unlock(&m->lock);
}

int pci_msix_check_state(struct pci_msix *m, const uint8_t *config,
                         const struct pci_msix_state *state, struct err *e)
{
    uint16_t control = load_le16(config + m->capability + CAP_CONTROL);
    bool may_any = (control & CONTROL_ENABLE) && !(control & CONTROL_FUNCTION_MASK) &&
                   pci_config_is_master(m->dev, config);

    if (state->count != m->count)
        return err_set(e, 0, "msix.count is %u, and the function has %u vectors", state->count,
                       m->count);
    for (unsigned i = 0; i < PCI_MSIX_VECTORS_MAX; i++) {
        const struct pci_msix_vector_state *v = &state->vectors[i];
        bool is_pending = (state->pending[i / 64] & BIT(i % 64)) != 0;
        if (i >= m->count) {
            if (is_pending)
                return err_set(e, 0, "msix.pending has bit %u, and there is no such vector", i);
            continue;
        }
        if (v->address & 3)
            return err_set(e, 0, "msix.vectors[%u].address is %#llx, which is not aligned", i,
                           (unsigned long long)v->address);
        if (v->is_masked > 1)
            return err_set(e, 0, "msix.vectors[%u].is_masked is %u", i, v->is_masked);
        if (is_pending && may_any && !v->is_masked)
            return err_set(e, 0, "msix.pending has bit %u, and nothing keeps that from being sent",
                           i);
    }
    return 0;
}

void pci_msix_set_state(struct pci_msix *m, const struct pci_msix_state *state)
{
    pthread_mutex_lock(&m->lock);
    for (unsigned i = 0; i < m->count; i++) {
        uint8_t *entry = m->table + i * ENTRY_SIZE;
        store_le64(entry, state->vectors[i].address);
        store_le32(entry + ENTRY_DATA, state->vectors[i].data);
        store_le32(entry + ENTRY_CONTROL, state->vectors[i].is_masked ? ENTRY_MASKED : 0);
    }
    memcpy(m->pending, state->pending, word_count(m) * sizeof(state->pending[0]));
    pthread_mutex_unlock(&m->lock);
}

/* ---- set-up ---- */

void pci_msix_reset(struct pci_msix *m)
{
    pthread_mutex_lock(&m->lock);
    memset(m->table, 0, m->count * ENTRY_SIZE);
    for (unsigned i = 0; i < m->count; i++)
        m->table[i * ENTRY_SIZE + ENTRY_CONTROL] = ENTRY_MASKED;
    memset(m->pending, 0, (m->count + 63) / 64 * 8);
    m->is_enabled = m->is_function_masked = m->is_master = false;
    pthread_mutex_unlock(&m->lock);
}

static void add_capability(struct pci_msix *m, unsigned bar)
{
    struct pci_device *dev = m->dev;

    m->capability = pci_device_add_capability(dev, PCI_CAP_MSIX, CAP_SIZE);
    store_le16(dev->config + m->capability + CAP_CONTROL, (uint16_t)(m->count - 1));
    store_le16(dev->write_mask + m->capability + CAP_CONTROL,
               CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
    store_le32(dev->config + m->capability + CAP_TABLE, bar);
    store_le32(dev->config + m->capability + CAP_PBA, m->pba_offset | bar);
}

int pci_msix_create(struct pci_device *dev, unsigned bar, unsigned count, struct pci_msix **out,
                    struct err *e)
{
    struct pci_msix *m = calloc(1, sizeof(*m));

    assert(count > 0 && count <= PCI_MSIX_VECTORS_MAX);
    if (m != NULL) {
        m->table = calloc(count, ENTRY_SIZE);
        m->pending = calloc((count + 63) / 64, 8);
    }
    if (m == NULL || m->table == NULL || m->pending == NULL) {
        if (m != NULL) {
            free(m->table);
            free(m->pending);
            free(m);
        }
        return err_set(e, ENOMEM, "make the %u interrupt vectors of %s", count, dev->name);
    }
    pthread_mutex_init(&m->lock, NULL);
    m->dev = dev;
    m->count = count;
    /* One page or more for each, so that a driver may map them apart (6.8.2). */
    m->pba_offset = 4096;
    while (m->pba_offset < count * ENTRY_SIZE)
        m->pba_offset *= 2;
    pci_msix_reset(m);
    struct space_window window = {.ops = &bar_ops, .ctx = m, .lock = &m->lock};
    pci_device_set_bar(dev, bar, PCI_BAR_MEM32, m->pba_offset * UINT64_C(2), &window);
    add_capability(m, bar);
    dev->msix = m;
    *out = m;
    return 0;
}

void pci_msix_destroy(struct pci_msix *m)
{
    if (m == NULL)
        return;
    pthread_mutex_destroy(&m->lock);
    free(m->table);
    free(m->pending);
    free(m);
}

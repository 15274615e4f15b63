/*
 * board_state.c - the state of all that is on the machine's PCI bus, and of what firmware talks to
 */
#include "vm/board_state.h"

#include <string.h>

#include "dev/pci/pci_host.h"
#include "dev/pci/piix3.h"
#include "dev/pci/piix4_pm.h"
#include "dev/virtio/virtio_pci.h"
#include "vm/board.h"

/* In the order of their slots. */
struct parts {
    uint8_t slots[BOARD_FUNCTIONS_MAX];
    struct virtio_pci *list[BOARD_FUNCTIONS_MAX];
    unsigned count;
};

static void list_parts(const struct board *b, struct parts *parts)
{
    parts->count = 0;
    for (unsigned i = 0; i < PCI_SLOT_COUNT; i++)
        if (b->functions[i] != NULL) {
            parts->slots[parts->count] = (uint8_t)i;
            parts->list[parts->count++] = b->functions[i];
        }
}

int board_quiesce_pci(struct board *b, uint64_t timeout_ns, struct err *e)
{
    struct parts parts;
    int rc = 0;

    list_parts(b, &parts);
    for (unsigned i = 0; i < parts.count && rc == 0; i++)
        rc = virtio_quiesce(virtio_pci_device(parts.list[i]), timeout_ns, e);
    if (rc != 0)
        board_resume_pci(b);
    return rc;
}

void board_resume_pci(struct board *b)
{
    struct parts parts;

    list_parts(b, &parts);
    for (unsigned i = 0; i < parts.count; i++)
        virtio_resume(virtio_pci_device(parts.list[i]));
}

int board_get_pci_state(struct board *b, struct board_pci_state *out, struct err *e)
{
    struct parts parts;
    int rc = 0;

    memset(out, 0, sizeof(*out));
    list_parts(b, &parts);
    out->function_count = (uint8_t)parts.count;
    for (unsigned i = 0; i < parts.count && rc == 0; i++) {
        out->slots[i] = parts.slots[i];
        rc = virtio_pci_get_state(parts.list[i], &out->functions[i], e);
    }
    pci_host_get_state(b->pci, &out->host);
    piix3_get_state(b->isa_bridge, &out->isa_bridge);
    piix4_pm_get_state(b->pm_function, &out->pm_function);
    out->has_fw_cfg = b->fw_cfg != NULL;
    if (b->fw_cfg != NULL)
        fw_cfg_get_state(b->fw_cfg, &out->fw_cfg);
    out->has_vars = b->vars != NULL;
    if (b->vars != NULL)
        pflash_get_state(b->vars, &out->vars);
    return rc;
}

static int check_parts(const struct board *b, const struct parts *parts,
                       const struct board_pci_state *state, struct err *e)
{
    static const char what[] = "put back the state of the machine's devices";

    if (state->function_count != parts->count)
        return err_set(e, 0, "%s: function_count is %u, and the machine has %u", what,
                       state->function_count, parts->count);
    for (unsigned i = 0; i < parts->count; i++)
        if (state->slots[i] != parts->slots[i])
            return err_set(e, 0, "%s: slots[%u] is %u, and the machine's is %u", what, i,
                           state->slots[i], parts->slots[i]);
    if (state->has_fw_cfg != (b->fw_cfg != NULL) || state->has_vars != (b->vars != NULL))
        return err_set(e, 0, "%s: has_fw_cfg and has_vars are %u and %u, and the machine's are not",
                       what, state->has_fw_cfg, state->has_vars);
    return 0;
}

int board_set_pci_state(struct board *b, const struct board_pci_state *state, struct err *e)
{
    struct parts parts;

    list_parts(b, &parts);
    int rc = check_parts(b, &parts, state, e);
    if (rc == 0)
        rc = pci_host_set_state(b->pci, &state->host, e);
    if (rc == 0)
        rc = piix3_set_state(b->isa_bridge, &state->isa_bridge, e);
    if (rc == 0)
        rc = piix4_pm_set_state(b->pm_function, &state->pm_function, e);
    for (unsigned i = 0; i < parts.count && rc == 0; i++)
        rc = virtio_pci_set_state(parts.list[i], &state->functions[i], e);
    if (rc == 0 && b->fw_cfg != NULL)
        rc = fw_cfg_set_state(b->fw_cfg, &state->fw_cfg, e);
    if (rc == 0 && b->vars != NULL)
        rc = pflash_set_state(b->vars, &state->vars, e);
    return rc;
}

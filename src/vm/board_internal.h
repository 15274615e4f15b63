/*
 * board_internal.h - between the files that make the board (board.c, board_pci.c)
 *
 * The parts are made by one thread while nothing runs, in the order of board_create's list. Those
 * that return int take what they make into *board; on failure it goes with the rest of the board.
 */
#ifndef DOPPEL_VM_BOARD_INTERNAL_H
#define DOPPEL_VM_BOARD_INTERNAL_H

#include "vm/board.h"

/* A line that drives both ends; *wire is what it is made of. */
struct irq_line board_make_wire(struct board_wire *wire, struct irq_line a, struct irq_line b);

/* A chip asks for a reset of the machine; ctx is the board. Any thread, the chip's lock held. */
void board_reset_wanted(void *ctx);

/* Where the bus's memory windows begin: below 4 GiB, and above. */
uint64_t board_pci_window(const struct board *b);
uint64_t board_pci_high_window(const struct board *b);

/* The bus with its bridges; then what is on it, as the configuration says. */
int board_create_pci(struct board *b, struct err *e);
int board_create_rng(struct board *b, struct err *e);
int board_create_disks(struct board *b, struct err *e);
int board_create_net(struct board *b, struct err *e);
int board_create_shares(struct board *b, struct err *e);
int board_create_console(struct board *b, struct err *e);
int board_create_balloon(struct board *b, struct err *e);
int board_create_vsock(struct board *b, struct err *e);

/* RST# on the bus. As board_reset. */
void board_reset_pci(struct board *b);

/*
 * For tests: destroy what is plugged into the bus, with the host's side of each, reset the
 * bridges, and plug all in anew, as board_create did. The machine is paused and its devices are at
 * rest (board_quiesce_pci), and the loop has had a turn since. What was made is not at rest.
 */
int board_renew_pci(struct board *b, struct err *e);

/* All of the above; what was not made is no harm. */
void board_destroy_pci(struct board *b);

#endif

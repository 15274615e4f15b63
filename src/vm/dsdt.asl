/*
 * dsdt.asl - what ACPI tells of the machine beyond the fixed tables
 *
 * Numbers come from machine_map.h, so that they cannot differ from what the board does.
 * Spec: ACPI 6.3, chapters 5, 6, 7 and 19.
 */
#include "machine_map.h"

DefinitionBlock ("", "DSDT", 2, "DOPPEL", "DOPPELPC", 1)
{
    /* where the window for PCI BARs begins: behind RAM, so acpi.c puts the number here */
    Name (\PMIN, MAP_PCI_WINDOW_ADDR)
    /* the same for the window above 4 GiB, and its last byte */
    Name (\PHMN, MAP_PCI_HIGH_WINDOW_ADDR)
    Name (\PHMX, MAP_PCI_HIGH_WINDOW_LAST)

    /* soft off: \_S5 is all there is */
    Name (\_S5, Package () { MAP_SLP_TYP_S5, MAP_SLP_TYP_S5, 0, 0 })

    /* 0: 8259s, 1: IOAPIC; told by the operating system */
    Name (\PICM, 0)
    Method (\_PIC, 1, NotSerialized)
    {
        \PICM = Arg0
    }

    Scope (\_SB)
    {
        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A03"))
            Name (_UID, 0)
            Name (_BBN, 0)
            Name (_SEG, 0)

            Name (RES, ResourceTemplate ()
            {
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode,
                    0, 0, 0, 0, 1)
                IO (Decode16, 0xcf8, 0xcf8, 1, 8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
                    0, 0, 0xcf7, 0, 0xcf8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
                    0, MAP_PCI_PORTS_ADDR, MAP_PCI_PORTS_LAST, 0, MAP_PCI_PORTS_SIZE)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable,
                    ReadWrite, 0, MAP_PCI_WINDOW_ADDR, MAP_PCI_WINDOW_LAST, 0,
                    MAP_PCI_WINDOW_SIZE, , , PMEM)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable,
                    ReadWrite, 0, MAP_PCI_WINDOW2_ADDR, MAP_PCI_WINDOW2_LAST, 0,
                    MAP_PCI_WINDOW2_SIZE)
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable,
                    ReadWrite, 0, MAP_PCI_HIGH_WINDOW_ADDR, MAP_PCI_HIGH_WINDOW_LAST, 0,
                    MAP_PCI_HIGH_WINDOW_SIZE, , , PHIM)
            })
            CreateDWordField (RES, PMEM._MIN, RMIN)
            CreateDWordField (RES, PMEM._LEN, RLEN)
            CreateQWordField (RES, PHIM._MIN, HMIN)
            CreateQWordField (RES, PHIM._MAX, HMAX)
            CreateQWordField (RES, PHIM._LEN, HLEN)
            Method (_CRS, 0, Serialized)
            {
                HMIN = \PHMN
                HMAX = \PHMX
                HLEN = \PHMX - \PHMN + 1
                RMIN = \PMIN
                RLEN = MAP_PCI_WINDOW_LAST - \PMIN + 1
                Return (RES)
            }

            /* the PCI-to-ISA bridge and its PIRQ route registers */
            Device (ISA)
            {
                Name (_ADR, 0x00010000)
                OperationRegion (PRQ, PCI_Config, 0x60, 4)
                Field (PRQ, ByteAcc, NoLock, Preserve)
                {
                    PRQA, 8,
                    PRQB, 8,
                    PRQC, 8,
                    PRQD, 8
                }
            }

            /* Pin p of slot s drives wire (s - 1 + p) mod 4, for all 32 slots. */
            Method (_PRT, 0, Serialized)
            {
                Local0 = Package (128) {}
                Local1 = 0
                While (Local1 < 128)
                {
                    Local2 = Local1 >> 2
                    Local3 = (Local1 + Local2 + 3) & 3
                    If (\PICM)
                    {
                        Local4 = Package (4) { 0, 0, 0, 0 }
                        Local4 [3] = Local3 + MAP_PIRQ_GSI
                    }
                    Else
                    {
                        Switch (ToInteger (Local3))
                        {
                            Case (0) { Local4 = Package (4) { 0, 0, \_SB.LNKA, 0 } }
                            Case (1) { Local4 = Package (4) { 0, 0, \_SB.LNKB, 0 } }
                            Case (2) { Local4 = Package (4) { 0, 0, \_SB.LNKC, 0 } }
                            Default  { Local4 = Package (4) { 0, 0, \_SB.LNKD, 0 } }
                        }
                    }
                    Local4 [0] = (Local2 << 16) | 0xffff
                    Local4 [1] = Local1 & 3
                    Local0 [Local1] = Local4
                    Local1++
                }
                Return (Local0)
            }
        }

        /* A PIRQ route register as a link device's status and resource: bit 7 is "not routed". */
        Method (LSTA, 1, NotSerialized)
        {
            If (Arg0 & 0x80)
            {
                Return (0x9)
            }
            Return (0xb)
        }
        Name (RBUF, ResourceTemplate ()
        {
            Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 0 }
        })
        Method (LCRS, 1, Serialized)
        {
            CreateDWordField (RBUF, 5, IRQN)
            IRQN = 0
            If ((Arg0 & 0x80) == 0)
            {
                IRQN = Arg0 & 0xf
            }
            Return (RBUF)
        }

        Device (LNKA)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 1)
            Name (_PRS, ResourceTemplate ()
            {
                Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 5, 10, 11 }
            })
            Method (_STA, 0, NotSerialized)
            {
                Return (\_SB.LSTA (\_SB.PCI0.ISA.PRQA))
            }
            Method (_DIS, 0, NotSerialized)
            {
                \_SB.PCI0.ISA.PRQA |= 0x80
            }
            Method (_CRS, 0, NotSerialized)
            {
                Return (\_SB.LCRS (\_SB.PCI0.ISA.PRQA))
            }
            Method (_SRS, 1, NotSerialized)
            {
                CreateDWordField (Arg0, 5, IRQN)
                \_SB.PCI0.ISA.PRQA = IRQN
            }
        }

        Device (LNKB)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 2)
            Name (_PRS, ResourceTemplate ()
            {
                Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 5, 10, 11 }
            })
            Method (_STA, 0, NotSerialized)
            {
                Return (\_SB.LSTA (\_SB.PCI0.ISA.PRQB))
            }
            Method (_DIS, 0, NotSerialized)
            {
                \_SB.PCI0.ISA.PRQB |= 0x80
            }
            Method (_CRS, 0, NotSerialized)
            {
                Return (\_SB.LCRS (\_SB.PCI0.ISA.PRQB))
            }
            Method (_SRS, 1, NotSerialized)
            {
                CreateDWordField (Arg0, 5, IRQN)
                \_SB.PCI0.ISA.PRQB = IRQN
            }
        }

        Device (LNKC)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 3)
            Name (_PRS, ResourceTemplate ()
            {
                Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 5, 10, 11 }
            })
            Method (_STA, 0, NotSerialized)
            {
                Return (\_SB.LSTA (\_SB.PCI0.ISA.PRQC))
            }
            Method (_DIS, 0, NotSerialized)
            {
                \_SB.PCI0.ISA.PRQC |= 0x80
            }
            Method (_CRS, 0, NotSerialized)
            {
                Return (\_SB.LCRS (\_SB.PCI0.ISA.PRQC))
            }
            Method (_SRS, 1, NotSerialized)
            {
                CreateDWordField (Arg0, 5, IRQN)
                \_SB.PCI0.ISA.PRQC = IRQN
            }
        }

        Device (LNKD)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 4)
            Name (_PRS, ResourceTemplate ()
            {
                Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 5, 10, 11 }
            })
            Method (_STA, 0, NotSerialized)
            {
                Return (\_SB.LSTA (\_SB.PCI0.ISA.PRQD))
            }
            Method (_DIS, 0, NotSerialized)
            {
                \_SB.PCI0.ISA.PRQD |= 0x80
            }
            Method (_CRS, 0, NotSerialized)
            {
                Return (\_SB.LCRS (\_SB.PCI0.ISA.PRQD))
            }
            Method (_SRS, 1, NotSerialized)
            {
                CreateDWordField (Arg0, 5, IRQN)
                \_SB.PCI0.ISA.PRQD = IRQN
            }
        }

        /* ports and memory that belong to the platform itself */
        Device (SYSR)
        {
            Name (_HID, EisaId ("PNP0C02"))
            Name (_UID, 0)
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x61, 0x61, 1, 1)
                IO (Decode16, 0x92, 0x92, 1, 1)
                IO (Decode16, 0xb2, 0xb2, 1, 2)
                IO (Decode16, 0x4d0, 0x4d0, 1, 2)
                IO (Decode16, MAP_PM_PORT, MAP_PM_PORT, 1, MAP_PM_SIZE)
                /* PCI Firmware Specification 3.2, 4.1.2: the window that MCFG tells of */
                Memory32Fixed (ReadWrite, MAP_ECAM_ADDR, MAP_ECAM_SIZE)
            })
        }

        Device (PIC)
        {
            Name (_HID, EisaId ("PNP0000"))
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x20, 0x20, 1, 2)
                IO (Decode16, 0xa0, 0xa0, 1, 2)
                IRQNoFlags () { 2 }
            })
        }

        Device (TMR)
        {
            Name (_HID, EisaId ("PNP0100"))
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x40, 0x40, 1, 4)
                IRQNoFlags () { MAP_PIT_IRQ }
            })
        }

        Device (RTC)
        {
            Name (_HID, EisaId ("PNP0B00"))
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x70, 0x70, 1, 2)
                IRQNoFlags () { MAP_RTC_IRQ }
            })
        }

        Device (HPET)
        {
            Name (_HID, EisaId ("PNP0103"))
            Name (_UID, 0)
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadOnly, MAP_HPET_ADDR, MAP_HPET_SIZE)
            })
        }

        Device (KBD)
        {
            Name (_HID, EisaId ("PNP0303"))
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x60, 0x60, 1, 1)
                IO (Decode16, 0x64, 0x64, 1, 1)
                IRQNoFlags () { MAP_KEYBOARD_IRQ }
            })
        }

        Device (MOU)
        {
            Name (_HID, EisaId ("PNP0F13"))
            Name (_CRS, ResourceTemplate ()
            {
                IRQNoFlags () { MAP_MOUSE_IRQ }
            })
        }

        Device (FPU)
        {
            Name (_HID, EisaId ("PNP0C04"))
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, MAP_FPU_PORT, MAP_FPU_PORT, 1, 1)
                IRQNoFlags () { MAP_FERR_IRQ }
            })
        }

        Device (COM1)
        {
            Name (_HID, EisaId ("PNP0501"))
            Name (_UID, 1)
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, MAP_COM1_PORT, MAP_COM1_PORT, 1, 8)
                IRQNoFlags () { MAP_COM1_IRQ }
            })
        }
    }
}
